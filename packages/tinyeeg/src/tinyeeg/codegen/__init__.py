"""Deployment as C99.

`export`  writes the folder
`fixed`   the integer reference that the q15 target equals bit for bit
"""
