"""Starting runs, here and elsewhere. Imports no JAX, TensorFlow or numpy: a laptop can submit."""
