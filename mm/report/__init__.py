"""What a person looks at after a run. Reads arrays and files; imports no JAX."""
