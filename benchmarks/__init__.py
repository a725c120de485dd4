"""Speed and memory of diffcrop beside what people use today; see NOTES.md and `python -m benchmarks --help`."""
