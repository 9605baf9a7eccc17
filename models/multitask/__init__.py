"""One plain ViT with a Segmenter's head and an RT-DETRv2's: a class map and boxes from one run."""
