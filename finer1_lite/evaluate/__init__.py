"""Answers of a policy, how they are judged, and what can be concluded from them."""
