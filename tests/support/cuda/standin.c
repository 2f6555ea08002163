/* Stands for libcuda.so.1 in tests: the calls that tandem.engine.rank.cuda makes, with the manners that matter.

   "Device" memory is a file mapped twice: its device address is a mapping that nobody may touch, so that code which
   takes it for host memory faults; tests look at it through the other mapping. A copy is only noted when it is queued
   and made when its stream is waited for, between memory of the device and pinned memory of the host; anything else is
   refused. Any call can be told to fail, and waiting for a stream can be held up. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_ITEMS 4096

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, FAULT = 700 };

typedef struct { uint64_t start, bytes; char *view; int device; } Area;
typedef struct { uint64_t device; char *host; size_t bytes; int down; } Copy;
typedef struct { char name[64]; long calls; int code; } Call;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static Area areas[MAX_ITEMS], pinned[MAX_ITEMS];
static Copy queued[MAX_ITEMS];
static Call known[64];
static int area_count, pinned_count, queued_count, most_queued, known_count;
static int ordering;
static int started, contexts, streams, hold, held;
static uint64_t last_event;
static __thread int current;
static char context, stream;

/* Counts a call; the code that it was told to fail with, or 0. Under the lock. */
static int entered(const char *name) {
    int i = 0;
    while (i < known_count && strcmp(known[i].name, name)) i++;
    if (i == known_count) strncpy(known[known_count++].name, name, sizeof known[0].name - 1);
    known[i].calls++;
    return known[i].code;
}

static Area *holding(Area *table, int count, uint64_t at, uint64_t bytes) {
    for (int i = 0; i < count; i++)
        if (table[i].bytes && at >= table[i].start && at + bytes <= table[i].start + table[i].bytes) return &table[i];
    return NULL;
}

#define ENTER(need_context) \
    pthread_mutex_lock(&lock); \
    int code = entered(__func__); \
    if (!code && !started && strcmp(__func__, "cuInit")) code = 3; \
    if (!code && (need_context) && !current) code = INVALID_CONTEXT;
#define LEAVE pthread_mutex_unlock(&lock); return code;

EXPORT int cuInit(unsigned flags) { ENTER(0) if (!code) started = 1; LEAVE }

EXPORT int cuDevicePrimaryCtxRetain(void **out, int device) {
    ENTER(0)
    if (!code) { contexts++; *out = &context; }
    LEAVE
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) { ENTER(0) if (!code) contexts--; LEAVE }

EXPORT int cuCtxSetCurrent(void *wanted) {
    ENTER(0)
    if (!code && wanted != &context) code = INVALID_CONTEXT;
    if (!code) current = 1;
    LEAVE
}

EXPORT int cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags) {
    ENTER(1)
    if (!code && (!bytes || holding(areas, area_count, (uint64_t)at, 1))) code = INVALID_VALUE;
    if (!code) pinned[pinned_count++] = (Area){(uint64_t)at, bytes, at, 0};
    LEAVE
}

EXPORT int cuMemHostUnregister(void *at) {
    ENTER(1)
    Area *area = holding(pinned, pinned_count, (uint64_t)at, 1);
    if (!code && (!area || area->start != (uint64_t)at)) code = INVALID_VALUE;
    if (!code) area->bytes = 0;
    LEAVE
}

EXPORT int cuStreamCreate(void **out, unsigned flags) {
    ENTER(1)
    if (!code) { streams++; *out = &stream; }
    LEAVE
}

EXPORT int cuStreamDestroy_v2(void *which) {
    ENTER(1)
    if (!code && (which != &stream || queued_count)) code = INVALID_HANDLE;
    if (!code) streams--;
    LEAVE
}

EXPORT int cuStreamWaitEvent(void *which, void *event, unsigned flags) {
    ENTER(0)
    if (!code && which != &stream) code = INVALID_HANDLE;
    if (!code) last_event = (uint64_t)event;
    LEAVE
}

static int note(uint64_t device, void *host, size_t bytes, void *which, int down) {
    if (which != &stream || queued_count == MAX_ITEMS) return INVALID_HANDLE;
    if (!holding(areas, area_count, device, bytes)) return INVALID_VALUE;
    if (!holding(pinned, pinned_count, (uint64_t)host, bytes)) return INVALID_VALUE;
    queued[queued_count++] = (Copy){device, host, bytes, down};
    if (queued_count > most_queued) most_queued = queued_count;
    return SUCCESS;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *which) {
    ENTER(1)
    if (!code) code = note(from, to, bytes, which, 1);
    LEAVE
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, void *from, size_t bytes, void *which) {
    ENTER(1)
    if (!code) code = note(to, from, bytes, which, 0);
    LEAVE
}

EXPORT int cuStreamSynchronize(void *which) {
    ENTER(1)
    held++;
    pthread_cond_broadcast(&change);
    while (hold) pthread_cond_wait(&change, &lock);
    held--;
    for (int i = 0; i < queued_count; i++) {
        Copy *copy = &queued[i];
        Area *area = holding(areas, area_count, copy->device, copy->bytes);
        if (!area || !holding(pinned, pinned_count, (uint64_t)copy->host, copy->bytes)) { code = FAULT; continue; }
        char *there = area->view + (copy->device - area->start);
        if (copy->down) memcpy(copy->host, there, copy->bytes);
        else memcpy(there, copy->host, copy->bytes);
    }
    queued_count = 0;
    LEAVE
}

EXPORT int cuPointerGetAttribute(void *out, int attribute, uint64_t at) {
    ENTER(0)
    Area *area = holding(areas, area_count, at, 1);
    if (!code && !area && !holding(pinned, pinned_count, at, 1)) code = INVALID_VALUE;
    if (!code && attribute == 2) *(unsigned *)out = area ? 2 : 1;
    else if (!code && attribute == 9 && area) *(int *)out = area->device;
    else if (!code) code = INVALID_VALUE;
    LEAVE
}

EXPORT int cuDeviceGetAttribute(int *out, int attribute, int device) {
    ENTER(0)
    if (!code && attribute != 118) code = INVALID_VALUE;
    if (!code) *out = ordering;
    LEAVE
}

/* Whole pages of one area only, as the real one wants them. */
EXPORT int cuMemGetHandleForAddressRange(int *out, uint64_t at, size_t bytes, int kind, unsigned long long flags) {
    ENTER(0)
    uint64_t page = sysconf(_SC_PAGESIZE);
    Area *area = holding(areas, area_count, at, 1);
    if (!code && (!area || at % page || bytes % page || kind != 1 || flags)) code = INVALID_VALUE;
    if (!code && at + bytes > area->start + (area->bytes + page - 1) / page * page) code = INVALID_VALUE;
    if (!code && (*out = memfd_create("dma-buf", 0)) < 0) code = 2;
    LEAVE
}

EXPORT int cuFlushGPUDirectRDMAWrites(int target, int scope) {
    ENTER(1)
    if (!code && (target != 0 || scope != 100)) code = INVALID_VALUE;
    LEAVE
}

EXPORT int cuGetErrorString(int code, const char **out) {
    *out = code == INVALID_VALUE ? "invalid argument" : code == 2 ? "out of memory" : "told to fail";
    return SUCCESS;
}

/* ---------------------------------------------------------------- what tests ask of it */

EXPORT uint64_t standin_allocate(uint64_t bytes, int device, void **view) {
    int file = memfd_create("device", 0);
    if (file < 0 || ftruncate(file, bytes)) return 0;
    void *outside = mmap(NULL, bytes, PROT_NONE, MAP_SHARED, file, 0);
    *view = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    pthread_mutex_lock(&lock);
    areas[area_count++] = (Area){(uint64_t)outside, bytes, *view, device};
    pthread_mutex_unlock(&lock);
    return (uint64_t)outside;
}

EXPORT void standin_fail(const char *name, int code) {
    pthread_mutex_lock(&lock);
    entered(name);
    for (int i = 0; i < known_count; i++)
        if (!strcmp(known[i].name, name)) { known[i].calls--; known[i].code = code; }
    pthread_mutex_unlock(&lock);
}

EXPORT long standin_calls(const char *name) {
    long calls = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < known_count; i++)
        if (!strcmp(known[i].name, name)) calls = known[i].calls;
    pthread_mutex_unlock(&lock);
    return calls;
}

EXPORT void standin_ordering(int value) { ordering = value; }

EXPORT void standin_hold(int on) {
    pthread_mutex_lock(&lock);
    hold = on;
    pthread_cond_broadcast(&change);
    pthread_mutex_unlock(&lock);
}

EXPORT void standin_wait_held(void) {
    pthread_mutex_lock(&lock);
    while (!(hold && held)) pthread_cond_wait(&change, &lock);
    pthread_mutex_unlock(&lock);
}

EXPORT uint64_t standin_last_event(void) { return last_event; }
EXPORT int standin_most_queued(void) { return most_queued; }
EXPORT int standin_open(void) { return contexts + streams; }

EXPORT uint64_t standin_pinned_bytes(void) {
    uint64_t bytes = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < pinned_count; i++) bytes += pinned[i].bytes;
    pthread_mutex_unlock(&lock);
    return bytes;
}
