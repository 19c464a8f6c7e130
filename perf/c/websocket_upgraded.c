/* The C limit for WebSocket echo: the request is answered as RFC 6455 asks for, and nothing of it
 * checked; then every frame of a read is unmasked, and sent back in one joined write.
 *
 * Frames below 64 KiB, each a whole message; CLOSE, ping and pong are not expected. */
#include "limit.h"

#include <endian.h>
#include <stdint.h>

static unsigned char output[sizeof input];

static inline uint32_t rotated(uint32_t word, int bits) {
    return word << bits | word >> (32 - bits);
}

/* SHA-1 (RFC 3174) of less than 120 bytes. */
static void sha1(const char *data, size_t size, unsigned char digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    unsigned char blocks[128] = {0};
    size_t total = size < 56 ? 64 : 128;
    memcpy(blocks, data, size);
    blocks[size] = 0x80;
    uint64_t bits = htobe64((uint64_t)size * 8);
    memcpy(blocks + total - 8, &bits, 8);
    for (size_t at = 0; at < total; at += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int t = 0; t < 80; t++) {
            if (t < 16) {
                memcpy(&w[t], blocks + at + 4 * t, 4);
                w[t] = be32toh(w[t]);
            } else w[t] = rotated(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
            uint32_t f = t < 20   ? (b & c) | (~b & d)
                         : t < 40 ? b ^ c ^ d
                         : t < 60 ? (b & c) | (b & d) | (c & d)
                                  : b ^ c ^ d;
            uint32_t k = t < 20   ? 0x5A827999
                         : t < 40 ? 0x6ED9EBA1
                         : t < 60 ? 0x8F1BBCDC
                                  : 0xCA62C1D6;
            uint32_t next = rotated(a, 5) + f + e + w[t] + k;
            e = d, d = c, c = rotated(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 5; i++) h[i] = htobe32(h[i]);
    memcpy(digest, h, 20);
}

/* The base64 (RFC 4648) of a digest, and a null. */
static void base64(const unsigned char digest[20], char text[29]) {
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char padded[21] = {0};
    memcpy(padded, digest, 20);
    for (int i = 0; i < 28; i++) {
        int at = i * 6 / 8, shift = 10 - i * 6 % 8;
        unsigned int pair = (unsigned int)padded[at] << 8 | (at < 20 ? padded[at + 1] : 0);
        text[i] = letters[pair >> shift & 63];
    }
    text[27] = '=';
    text[28] = 0;
}

static ssize_t answer_request(peer_t *peer, unsigned char *data, size_t size) {
    static const char field[] = "\r\nSec-WebSocket-Key: ";
    char key[60], text[29];
    unsigned char digest[20];
    unsigned char *found = memmem(data, size, field, sizeof field - 1);
    if (memmem(data, size, "\r\n\r\n", 4) == NULL) {
        peer_carry(peer, data, size);
        return 0;
    }
    if (found == NULL || data + size < found + sizeof field - 1 + 24) return -1;
    memcpy(key, found + sizeof field - 1, 24);
    memcpy(key + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha1(key, 60, digest);
    base64(digest, text);
    peer_carry(peer, NULL, 0);
    return sprintf((char *)output,
                   "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                   "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                   text);
}

static ssize_t reply(peer_t *peer, unsigned char *data, size_t size, unsigned char **answer) {
    size_t at = 0, used = 0;
    *answer = output;
    if (size > 0 && data[0] == 'G') return answer_request(peer, data, size);
    while (size - at >= 6) {
        const unsigned char *frame = data + at;
        size_t length = frame[1] & 0x7F, head = 2;
        if (!(frame[1] & 0x80) || length == 127) return -1;
        if (length == 126) {
            if (size - at < 8) break;
            length = (size_t)frame[2] << 8 | frame[3];
            head = 4;
        }
        if (size - at < head + 4 + length) break;
        unsigned char *to = output + used;
        to[0] = frame[0];
        to[1] = frame[1] & 0x7F;
        memcpy(to + 2, frame + 2, head - 2);
        uint64_t mask, word;
        memcpy(&mask, frame + head, 4);
        memcpy((unsigned char *)&mask + 4, frame + head, 4);
        const unsigned char *payload = frame + head + 4;
        size_t i = 0;
        for (; length - i >= 8; i += 8) {
            memcpy(&word, payload + i, 8);
            word ^= mask;
            memcpy(to + head + i, &word, 8);
        }
        for (; i < length; i++) to[head + i] = payload[i] ^ frame[head + (i & 3)];
        used += head + length;
        at += head + 4 + length;
    }
    peer_carry(peer, data + at, size - at);
    return (ssize_t)used;
}
