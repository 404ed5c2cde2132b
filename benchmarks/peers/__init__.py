"""Published algorithms, restated plainly in our own words, to be measured against."""
