"""The feedback room: people compare responses on a page of their own machine, and the votes become training data.

Items, the store of votes, the page, agreement, rankings and exports. Nothing else of the project imports it.
"""
