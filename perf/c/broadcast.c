/* The C limit for a broadcast: what begins with 'B' goes to every connection, one send each, and
 * all else back. */
#include "limit.h"

static ssize_t reply(peer_t *peer, unsigned char *data, size_t size, unsigned char **answer) {
    (void)peer;
    *answer = data;
    if (data[0] != 'B') return (ssize_t)size;
    for (peer_t *each = everyone; each != NULL; each = each->after)
        if (each->output != NULL || peer_send(each, data, size) < 0)
            die("a receiver that does not receive");
    return 0;
}
