/* The C limit for SimpleFrame echo: every frame of a read is parsed, and encoded anew into one
 * joined write.
 *
 * Wire format: 0x01, u16 big-endian length, payload, 0x17. Sending the input back as it came would
 * be shorter, and no longer the job that a framing server does. */
#include "limit.h"

static unsigned char output[sizeof input];

static ssize_t reply(peer_t *peer, unsigned char *data, size_t size, unsigned char **answer) {
    size_t at = 0, used = 0;
    while (size - at >= 4) {
        size_t length = (size_t)data[at + 1] << 8 | data[at + 2];
        if (data[at] != 0x01) return -1;
        if (size - at < length + 4) break;
        if (data[at + 3 + length] != 0x17) return -1;
        unsigned char *frame = output + used;
        frame[0] = 0x01;
        frame[1] = (unsigned char)(length >> 8);
        frame[2] = (unsigned char)length;
        memcpy(frame + 3, data + at + 3, length);
        frame[3 + length] = 0x17;
        used += length + 4;
        at += length + 4;
    }
    peer_carry(peer, data + at, size - at);
    *answer = output;
    return (ssize_t)used;
}
