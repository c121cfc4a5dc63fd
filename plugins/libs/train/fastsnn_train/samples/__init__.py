"""Training on labelled samples: images, time series, events; classes, numbers, or a label for every step."""
