"""GPT-2 whose attention can be swapped.

With every switch off it is GPT-2, number for number; switched on: rotary positions, grouped-query and multi-query
attention, sliding windows, or a mechanism of your own.
"""

import lazy_loader

from gpt2lab.threads import sleep_when_waiting

sleep_when_waiting()

# What there is stands in __init__.pyi. A name is imported when it is first used: asking for help does not load torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
