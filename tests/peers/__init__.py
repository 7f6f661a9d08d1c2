"""Programs that others write, with a noisy RNN in the place of torch's."""
