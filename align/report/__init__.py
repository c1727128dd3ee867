"""The HTML report of a run and the helpers of the notebooks."""
