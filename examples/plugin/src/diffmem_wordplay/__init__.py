"""A score and a mitigation for diffmem, in a package of their own."""
