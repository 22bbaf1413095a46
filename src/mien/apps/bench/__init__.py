"""What `mien bench` measures: this machine, training, data, evaluation and sampling."""
