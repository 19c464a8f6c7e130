"""The Python engine: the reference that the compiled one is compared with. Clear before fast; start
reading at `loop.py`.
"""
