/* The C limit for raw echo: the bytes of a read go back as they are. */
#include "limit.h"

static ssize_t reply(peer_t *peer, unsigned char *data, size_t size, unsigned char **answer) {
    (void)peer;
    *answer = data;
    return (ssize_t)size;
}
