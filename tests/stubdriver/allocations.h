/* The memory of each GPU, which lies in the host's. */
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

enum { MOST_BLOCKS = 1 << 14 };

typedef struct { char *at; size_t bytes; int device; } Block;

static Block blocks[MOST_BLOCKS];
static int block_count = 0;
static pthread_mutex_t block_lock = PTHREAD_MUTEX_INITIALIZER;

/* The block that `p` lies in; one of no device where there is none. */
static Block block_of(const void *p) {
    Block found = {NULL, 0, -1};
    pthread_mutex_lock(&block_lock);
    for (int i = 0; i < block_count && found.device < 0; ++i)
        if (blocks[i].at <= (char *)p && (char *)p < blocks[i].at + blocks[i].bytes) found = blocks[i];
    pthread_mutex_unlock(&block_lock);
    return found;
}

/* The device whose memory `p` points to, or -1. */
int stub_owner(const void *p) { return block_of(p).device; }

/* Where the allocation begins that `p` points into, and its bytes; 0: there is none. */
int stub_allocation(const void *p, void **at, size_t *bytes) {
    Block found = block_of(p);
    *at = found.at;
    *bytes = found.bytes;
    return found.device >= 0;
}

/* Let memory that the test has be a device's. */
void stub_own(void *p, size_t bytes, int device) {
    pthread_mutex_lock(&block_lock);
    if (block_count == MOST_BLOCKS) abort();
    blocks[block_count++] = (Block){p, bytes, device};
    pthread_mutex_unlock(&block_lock);
}

/* The bytes of the block that began there, which is nobody's now; 0: there was none. */
size_t stub_disown(void *p) {
    size_t bytes = 0;
    pthread_mutex_lock(&block_lock);
    for (int i = 0; i < block_count && !bytes; ++i)
        if (blocks[i].at == p) { bytes = blocks[i].bytes; blocks[i] = blocks[--block_count]; }
    pthread_mutex_unlock(&block_lock);
    return bytes;
}
