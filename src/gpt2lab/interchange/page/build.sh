#!/bin/sh
# Makes engine.wasm out of engine.c. The committed one: Debian clang 14.0.6 and its wasm-ld; engine.wasm.sha256 has its
# hash. (Debian and Ubuntu: apt install clang lld.) Another version may make other bytes, which compute the same.
set -eu
cd "$(dirname "$0")"
clang --target=wasm32 -O3 -msimd128 -mbulk-memory -ffp-contract=off -nostdlib -Wall -Wextra -Werror \
  -Wl,--no-entry -Wl,--export=room -Wl,--export=begin -Wl,--export=step \
  -Wl,--export=attention -Wl,--strip-all -o "${1:-engine.wasm}" engine.c
