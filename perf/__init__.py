"""The comparison of hydrogen with its peers and with the C limit: ``python -m perf.compare``. See
README.md.
"""
