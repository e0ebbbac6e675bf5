"""What placement is worth: pools of real VM sizes, beside what others do and beside the exact optimum; and how fast."""
