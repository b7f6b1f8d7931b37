"""The annex of a report: what an audit tested, for those who must show evidence to others."""
