"""The implementations of the ops: `reference` is the specification, the others must equal it."""
