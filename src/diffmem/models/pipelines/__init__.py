"""What takes hold of a user's pipeline: the call interceptor, the branch sorter."""
