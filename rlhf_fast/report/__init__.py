"""The HTML page that a stage leaves behind: its style, charts as inline SVG, and sections that several stages share.

No script and no external resource. What the numbers mean, and sections that only one stage has, are in that stage.
"""
