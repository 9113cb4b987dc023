/* What is kept of a command's output of any size: the first and the last half. Knows nothing of commands or frames. */
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { OUTPUT_MAX = 8 << 20 };

struct output {
    unsigned char *first; /* room for both halves; the last half moves here from the ring in finish() */
    size_t half;
    uint64_t total;
};

static unsigned char ring[OUTPUT_MAX / 2];

static struct output expect(unsigned char *room, size_t cap) {
    size_t half = cap / 2;
    return (struct output){room, half < 1 ? 1 : half > OUTPUT_MAX / 2 ? OUTPUT_MAX / 2 : half, 0};
}

static ssize_t keep(struct output *output, int fd) { /* reads once; returns what read() did */
    static unsigned char piece[65536];
    ssize_t n = read(fd, piece, sizeof piece);
    for (ssize_t done = 0; done < n;) {
        int in_first = output->total < output->half;
        size_t at = in_first ? output->total : (output->total - output->half) % output->half, take = n - done;
        if (take > output->half - at) take = output->half - at;
        memcpy((in_first ? output->first : ring) + at, piece + done, take);
        done += take, output->total += take;
    }
    return n;
}

static size_t finish(const struct output *output) { /* the number of bytes kept, in order from `first` */
    if (output->total <= output->half) return output->total;
    uint64_t tail = output->total - output->half;
    size_t size = tail < output->half ? tail : output->half, oldest = tail <= output->half ? 0 : tail % output->half;
    memcpy(output->first + output->half, ring + oldest, size - oldest);
    memcpy(output->first + output->half + size - oldest, ring, oldest);
    return output->half + size;
}
