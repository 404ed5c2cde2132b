"""One file for each topic; a file with a function `comparisons` is found, no list names it."""
