"""A trained model as others open it: adapter and base merged into one folder, with a model card; a reward adapter as a
sequence classifier."""
