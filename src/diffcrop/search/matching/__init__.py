"""What `locate` is made of: the search of the whole image, and the refinement of what it found."""
