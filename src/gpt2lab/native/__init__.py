"""What is written in C++, and compiled for this machine."""
