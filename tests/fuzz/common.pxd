"""What the harnesses share. Nothing in here calls Python."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport FILE, fclose, fopen, fprintf, fread, printf, stderr
from libc.stdlib cimport abort, free, malloc
from libc.string cimport memcpy

cdef enum:
    WIRE_MOST = 4096  # longer inputs are skipped
    BYTE_BY_BYTE = 64  # at most so many parts of one byte: each costs an allocation
    FILE_MOST = 2 * WIRE_MOST


cdef inline void check(bint holds, const char *what) noexcept nogil:
    if not holds:
        fprintf(stderr, "fuzz: this does not hold: %s\n", what)
        abort()


cdef inline uint8_t *block(const uint8_t *data, size_t n) noexcept nogil:
    """A copy of exactly that size: the sanitizer sees any access beyond it."""
    cdef uint8_t *made = <uint8_t *>malloc(n)
    check(made != NULL or n == 0, "there is memory")
    if n and data != NULL:
        memcpy(made, data, n)
    return made


cdef inline size_t part_size(uint8_t split, uint32_t *dice, uint32_t parts) noexcept nogil:
    """How long the next part is, at most; `parts` were cut already."""
    dice[0] = dice[0] * 1664525 + 1013904223
    if split % 4 == 0 and parts < BYTE_BY_BYTE:
        return 1
    return 1 + (dice[0] >> 16) % (8 << split % 4 * 2)


cdef inline void hex(const char *name, const uint8_t *data, size_t n) noexcept nogil:
    cdef size_t i
    printf(" %s=", name)
    for i in range(n):
        printf("%02x", data[i])


cdef inline void replay_files(
    int argc, char **argv, void (*each)(const uint8_t *data, size_t size) noexcept nogil,
) noexcept nogil:
    """Call `each` with the input in every file named on the command line."""
    cdef uint8_t data[FILE_MOST]
    cdef uint8_t *exact
    cdef size_t size
    cdef FILE *file
    cdef int i
    for i in range(1, argc):
        file = fopen(argv[i], "rb")
        check(file != NULL, "the file can be read")
        size = fread(data, 1, sizeof(data), file)
        fclose(file)
        exact = block(data, size)
        each(exact, size)
        free(exact)
