"""The verb `review`: people label the pairs of a run on a page that this machine serves to itself."""
