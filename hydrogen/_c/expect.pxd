"""What the compiler is told of branches on the way of each message: without it, it brings what
hardly ever happens into line, and each message pays for the registers that need it.
"""

cdef extern from "expect.h" nogil:
    bint expect_seldom(bint condition)
