"""Reading, describing, filtering, merging and splitting of image datasets."""
