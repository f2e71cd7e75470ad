/* A CUDA driver without a GPU: libcuda.so.1 as far as the launch code of gpuconv's backends calls it.
 *
 * It loads cubins as far as reading their headers, runs nothing, and writes down every launch for the test to look at.
 * What a driver refuses it refuses: a thread without a context, a function or a stream of another GPU, grids, blocks,
 * shared memory and registers beyond the limits, code for another architecture, loading while a stream is captured.
 * GPUs are given by the environment, STUB_GPUS=90,90,80: two of compute capability 9.0 and one of 8.0, whose memory is the
 * host's. Compiled with the cuda.h of the Triton that is driven, so that structures and renamed symbols (…_v2) agree. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cubin.h"

enum { MOST_GPUS = 8, MOST_LAUNCHES = 1 << 14, MOST_BLOCKS = 1 << 14, SHARED_WITHOUT_ASKING = 48 << 10 };

typedef struct { int device; } Context;                 /* each GPU has its primary one and no other */
typedef struct { int device, capturing; CUstreamCaptureMode mode; } Stream;
typedef struct Function Function;
typedef struct { Context *context; void *image; Function *functions; } Module;
struct Function { Module *module; Kernel kernel; int dynamic_allowed; Function *next; };
typedef struct { char *at; size_t bytes; int device; } Block;

typedef struct {                                        /* what a test is shown of a launch */
    char name[128];
    int device, thread;                                 /* threads are counted in the order of their first launch */
    uint32_t grid[3], block[3], shared, attributes;
    void *stream, *function;
    int parameters;
    int sizes[MOST_PARAMETERS];                         /* bytes, as the cubin says */
    uint64_t values[MOST_PARAMETERS];
} Launched;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Context contexts[MOST_GPUS] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
static _Thread_local Context *current = NULL;           /* as in CUDA, every thread has its own */
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
static _Thread_local int captures_here = 0;             /* begun by this thread, not in relaxed mode */
static int captures_global = 0;                         /* begun by any thread in global mode */
static Launched launches[MOST_LAUNCHES];
static int launched = 0, loaded = 0, unloaded = 0, refusals = 0, threads = 0;
static _Thread_local int thread = -1;
static char refusal[256] = "";
static Block blocks[MOST_BLOCKS];
static int block_count = 0;

/* ---- what a test asks and tells ---- */

int stub_launches(void) { return launched; }
const Launched *stub_launch(int i) { return &launches[i]; }
int stub_modules_loaded(void) { return loaded; }
int stub_modules_unloaded(void) { return unloaded; }
int stub_refusals(void) { return refusals; }
const char *stub_refusal(void) { return refusal; }      /* the last one, in words */
void stub_clear(void) { launched = refusals = 0; refusal[0] = 0; }

static CUresult refuse(CUresult error, const char *why, ...) {
    va_list rest;
    va_start(rest, why);
    vsnprintf(refusal, sizeof refusal, why, rest);
    va_end(rest);
    ++refusals;
    return error;
}

/* ---- devices ---- */

/* The capability of device `d`, times ten; 0 where STUB_GPUS names none. */
static int capability(int d) {
    const char *at = getenv("STUB_GPUS");
    for (; at && d > 0; --d) at = (at = strchr(at, ',')) ? at + 1 : NULL;
    return at && d == 0 ? atoi(at) : 0;
}

int stub_capability(int d) { return capability(d); }

static int shared_optin(int of) { return of == 80 ? 163 << 10 : of == 86 || of == 89 || of == 120 ? 99 << 10 : 227 << 10; }

int stub_device_attribute(int attribute, int d) {
    int of = capability(d);
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return of / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return of % 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return SHARED_WITHOUT_ASKING;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return shared_optin(of);
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return shared_optin(of) + 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return of % 10 || of == 120 ? 1536 : 2048;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return of == 80 ? 108 : of == 90 ? 132 : 148;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1830000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return d + 1;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
    default: return 0;
    }
}

CUresult cuInit(unsigned flags) { return capability(0) ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *n) { for (*n = 0; capability(*n); ++*n); return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int i) { *d = i; return capability(i) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) { *v = stub_device_attribute(a, d); return CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t *n, CUdevice d) { *n = 80ull << 30; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int size, CUdevice d) {
    int of = capability(d);
    snprintf(name, size, "%s", of == 80 ? "NVIDIA A100-SXM4-40GB" : of == 90 ? "NVIDIA H100 80GB HBM3" : "NVIDIA stub");
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult e, const char **s) { *s = "CUDA_ERROR"; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **s) {
    *s = e == CUDA_ERROR_INVALID_CONTEXT ? "invalid device context"
       : e == CUDA_ERROR_INVALID_VALUE ? "invalid argument"
       : e == CUDA_ERROR_INVALID_HANDLE ? "invalid resource handle"
       : e == CUDA_ERROR_INVALID_IMAGE ? "device kernel image is invalid"
       : e == CUDA_ERROR_NO_BINARY_FOR_GPU ? "no kernel image is available for execution on the device"
       : e == CUDA_ERROR_NOT_FOUND ? "named symbol not found"
       : e == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES ? "too many resources requested for launch"
       : e == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED ? "operation not permitted when stream is capturing"
       : e == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
       : e == CUDA_SUCCESS ? "no error" : "unknown error";
    return CUDA_SUCCESS;
}

/* ---- contexts ---- */

CUresult cuCtxGetCurrent(CUcontext *c) { *c = (CUcontext)current; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { current = (Context *)c; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *d) {
    if (!current) return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuCtxGetDevice: no context is current in this thread");
    *d = current->device;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetLimit(size_t *v, CUlimit l) { *v = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit l, size_t v) { return CUDA_SUCCESS; }
CUresult cuCtxSynchronize(void) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
    if (!capability(d)) return refuse(CUDA_ERROR_INVALID_DEVICE, "there is no device %d", d);
    *c = (CUcontext)&contexts[d];
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice d) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) { *flags = 0; *active = 1; return CUDA_SUCCESS; }

/* ---- memory: the host's ---- */

/* The device whose memory `p` points to, or -1. */
int stub_owner(const void *p) {
    int found = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count && found < 0; ++i)
        if (blocks[i].at <= (char *)p && (char *)p < blocks[i].at + blocks[i].bytes) found = blocks[i].device;
    pthread_mutex_unlock(&lock);
    return found;
}

/* Let memory that the test has be a device's. */
void stub_own(void *p, size_t bytes, int device) {
    pthread_mutex_lock(&lock);
    if (block_count == MOST_BLOCKS) abort();
    blocks[block_count++] = (Block){p, bytes, device};
    pthread_mutex_unlock(&lock);
}

static int disown(void *p, size_t *bytes) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count && !found; ++i)
        if (blocks[i].at == p) { *bytes = blocks[i].bytes; blocks[i] = blocks[--block_count]; found = 1; }
    pthread_mutex_unlock(&lock);
    return found;
}

/* Whether a call that could upset a capture is forbidden now. */
static int capture_forbids(void) {
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return 0;
    return captures_here || (thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && captures_global);
}

CUresult cuMemAlloc(CUdeviceptr *p, size_t bytes) {
    if (!current) return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuMemAlloc: no context is current in this thread");
    if (capture_forbids()) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuMemAlloc while a stream is captured");
    if (bytes > 64ull << 30) return CUDA_ERROR_OUT_OF_MEMORY;
    void *at = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    stub_own(at, bytes, current->device);
    *p = (CUdeviceptr)at;
    return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr p) {
    size_t bytes;
    if (disown((void *)p, &bytes)) munmap((void *)p, bytes);
    return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *v, CUpointer_attribute a, CUdeviceptr p) {
    int owner = stub_owner((void *)p);
    if (owner < 0) return refuse(CUDA_ERROR_INVALID_VALUE, "%p is no memory of a device", (void *)p);
    if (a == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)v = p;
    else if (a == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) *(int *)v = owner;
    else return CUDA_ERROR_NOT_SUPPORTED;
    return CUDA_SUCCESS;
}

/* ---- streams and captures; handles below 16 are the default streams of the current device ---- */

CUresult cuStreamCreate(CUstream *s, unsigned flags) {
    if (!current) return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuStreamCreate: no context is current in this thread");
    Stream *made = calloc(1, sizeof *made);
    made->device = current->device;
    *s = (CUstream)made;
    return CUDA_SUCCESS;
}
CUresult cuStreamCreateWithPriority(CUstream *s, unsigned flags, int priority) { return cuStreamCreate(s, flags); }
CUresult cuStreamDestroy(CUstream s) { return CUDA_SUCCESS; }       /* its memory stays, for handles that linger */
CUresult cuStreamBeginCapture(CUstream s, CUstreamCaptureMode mode) {
    if ((uintptr_t)s < 16) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a default stream is not captured");
    ((Stream *)s)->capturing = 1;
    ((Stream *)s)->mode = mode;
    captures_here += mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    __sync_fetch_and_add(&captures_global, mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream s, CUgraph *graph) {
    Stream *stream = (Stream *)s;
    stream->capturing = 0;
    captures_here -= stream->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    __sync_fetch_and_sub(&captures_global, stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
    *graph = (CUgraph)calloc(1, 8);
    return CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *status) {
    *status = (uintptr_t)s >= 16 && ((Stream *)s)->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    CUstreamCaptureMode was = thread_mode;
    thread_mode = *mode;
    *mode = was;
    return CUDA_SUCCESS;
}

/* ---- modules and functions ---- */

CUresult cuModuleLoadData(CUmodule *m, const void *image) {
    if (!current) return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuModuleLoadData: no context is current in this thread");
    if (capture_forbids()) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a module is loaded while a stream is captured");
    int built_for = cubin_architecture(image), have = capability(current->device);
    if (!built_for) return refuse(CUDA_ERROR_INVALID_IMAGE, "what is loaded is no cubin");
    if (built_for / 10 != have / 10 || built_for > have)
        return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "code for sm_%d is loaded on sm_%d", built_for, have);
    Module *made = calloc(1, sizeof *made);
    made->context = current;
    made->image = cubin_copy(image);
    *m = (CUmodule)made;
    __sync_fetch_and_add(&loaded, 1);
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned n, CUjit_option *o, void **v) { return cuModuleLoadData(m, image); }
CUresult cuModuleLoad(CUmodule *m, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    fseek(file, 0, SEEK_END);
    long bytes = ftell(file);
    rewind(file);
    char *image = calloc(1, bytes + 64);
    CUresult result = fread(image, 1, bytes, file) == (size_t)bytes ? cuModuleLoadData(m, image) : CUDA_ERROR_INVALID_IMAGE;
    fclose(file);
    free(image);
    return result;
}
/* What it held stays, so that a launch of a function whose module is gone is noticed and does not crash the test. */
CUresult cuModuleUnload(CUmodule m) {
    ((Module *)m)->context = NULL;
    __sync_fetch_and_add(&unloaded, 1);
    return CUDA_SUCCESS;
}
/* One function for each name: whoever asks again shares it, and what was allowed for it. */
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
    Module *module = (Module *)m;
    pthread_mutex_lock(&lock);
    Function *found = module->functions;
    while (found && strcmp(found->kernel.name, name)) found = found->next;
    if (!found && (found = calloc(1, sizeof *found)) && cubin_kernel(module->image, name, &found->kernel)) {
        found->module = module;
        found->next = module->functions;
        module->functions = found;
    }
    pthread_mutex_unlock(&lock);
    if (!found->module) {
        free(found);
        return refuse(CUDA_ERROR_NOT_FOUND, "the module has no kernel %s", name);
    }
    *f = (CUfunction)found;
    return CUDA_SUCCESS;
}

static int most_threads(const Kernel *k) {
    int by_registers = 65536 / ((k->registers * 32 + 255) / 256 * 256) * 32;  /* they are given out by warps, 256 at a time */
    int most = by_registers < 1024 ? by_registers : 1024;
    return k->most_threads && k->most_threads < most ? k->most_threads : most;
}

CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
    Function *function = (Function *)f;
    switch ((int)a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *v = most_threads(&function->kernel); break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *v = function->kernel.shared; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *v = function->kernel.registers; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *v = function->dynamic_allowed; break;
    default: *v = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
    Function *function = (Function *)f;
    if (!current) return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuFuncSetAttribute: no context is current in this thread");
    if ((int)a == 17) return CUDA_ERROR_INVALID_VALUE;  /* oversized shared memory: Triton asks, and goes on without */
    if (a != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    int most = shared_optin(capability(current->device)) - function->kernel.shared;
    if (v > most) return refuse(CUDA_ERROR_INVALID_VALUE, "%d bytes of shared memory are asked for, and there are %d", v, most);
    function->dynamic_allowed = v;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { *n = 1; return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int threads, size_t shared) { *n = 1; return CUDA_SUCCESS; }

/* ---- launches ---- */

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **parameters, void **extra) {
    Function *function = (Function *)f;
    if (!current) return refuse(CUDA_ERROR_INVALID_CONTEXT, "launch: no context is current in this thread");
    if (!function) return refuse(CUDA_ERROR_INVALID_HANDLE, "launch of no function");
    const Kernel *k = &function->kernel;
    const Stream *stream = (uintptr_t)c->hStream < 16 ? NULL : (const Stream *)c->hStream;
    if (!function->module->context) return refuse(CUDA_ERROR_INVALID_HANDLE, "launch of %s, whose module was unloaded", k->name);
    if (function->module->context != current)
        return refuse(CUDA_ERROR_INVALID_HANDLE, "launch of %s, loaded on device %d, on device %d", k->name,
                      function->module->context->device, current->device);
    if (stream && stream->device != current->device)
        return refuse(CUDA_ERROR_INVALID_HANDLE, "launch on device %d and a stream of device %d", current->device, stream->device);
    if (!c->gridDimX || !c->gridDimY || !c->gridDimZ || c->gridDimX > INT32_MAX || c->gridDimY > 65535 || c->gridDimZ > 65535)
        return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %u × %u × %u blocks", c->gridDimX, c->gridDimY, c->gridDimZ);
    unsigned long long block = (unsigned long long)c->blockDimX * c->blockDimY * c->blockDimZ;
    if (!block || block > 1024 || c->blockDimZ > 64 || (k->most_threads && block > (unsigned)k->most_threads) ||
        (k->threads[0] && (c->blockDimX != k->threads[0] || c->blockDimY != k->threads[1] || c->blockDimZ != k->threads[2])))
        return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s with blocks of %llu threads", k->name, block);
    if (block > (unsigned)most_threads(k))
        return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "launch of %s: registers for %llu threads", k->name, block);
    int without_asking = SHARED_WITHOUT_ASKING - k->shared;
    int allowed = function->dynamic_allowed > without_asking ? function->dynamic_allowed : without_asking;
    if (c->sharedMemBytes > (unsigned)allowed)
        return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s with %u bytes of shared memory, and %d are allowed", k->name,
                      c->sharedMemBytes, allowed);
    Launched made = {.device = current->device, .grid = {c->gridDimX, c->gridDimY, c->gridDimZ},
                     .block = {c->blockDimX, c->blockDimY, c->blockDimZ}, .shared = c->sharedMemBytes,
                     .attributes = c->numAttrs, .stream = (void *)c->hStream, .function = function,
                     .parameters = k->parameters};
    snprintf(made.name, sizeof made.name, "%s", k->name);
    for (int i = 0; i < k->parameters; ++i) {
        made.sizes[i] = k->sizes[i];
        memcpy(&made.values[i], parameters[i], k->sizes[i] < 8 ? k->sizes[i] : 8);
        int owner = k->sizes[i] == 8 ? stub_owner((void *)made.values[i]) : -1;
        if (owner >= 0 && owner != current->device)
            return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s on device %d: parameter %d points to memory of device %d",
                          k->name, current->device, i, owner);
    }
    pthread_mutex_lock(&lock);
    if (thread < 0) thread = threads++;
    made.thread = thread;
    if (launched < MOST_LAUNCHES) launches[launched++] = made;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void **parameters, void **extra) {
    CUlaunchConfig c = {gx, gy, gz, bx, by, bz, shared, s, NULL, 0};
    return cuLaunchKernelEx(&c, f, parameters, extra);
}

/* ---- where a runtime finds all of these ---- */

/* NVRTC asks for tables that are no part of the interface, and does without. */
CUresult cuGetExportTable(const void **table, const CUuuid *id) { *table = NULL; return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuGetProcAddress(const char *name, void **f, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *result) {
    char newer[128];
    snprintf(newer, sizeof newer, "%s_v2", name);
    *f = dlsym(RTLD_DEFAULT, newer);
    if (!*f) *f = dlsym(RTLD_DEFAULT, name);
    if (result) *result = *f ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *f ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
