/* A CUDA driver without a GPU: libcuda.so.1 as far as the launch code of gpuconv's backends calls it.
 *
 * It loads cubins as far as reading their headers, and writes down every launch for the test to look at. It runs nothing
 * itself: who wants launches to compute hands it functions that execute them (`stub_execute`; executor.py does).
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

#include "allocations.h"
#include "cubin.h"
#include "devices.h"
#include "graph.h"
#include "tensor_map.h"

enum { MOST_GPUS = 8, MOST_LAUNCHES = 1 << 14 };

typedef struct { int device; } Context;                 /* each GPU has its primary one and no other */
typedef struct { int device, capturing; CUstreamCaptureMode mode; Graph *graph; } Stream;
typedef struct Function Function;
typedef struct { Context *context; void *image; Function *functions; } Module;
struct Function { Module *module; Kernel kernel; int dynamic_allowed; Function *next; };

typedef struct {                                        /* a launch as a test sees it */
    char name[128];
    int device, thread;                                 /* threads are counted in the order of their first launch */
    uint32_t grid[3], block[3], cluster[3], shared, attributes;
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
static char refusal[960] = "";                          /* Triton puts it into 1024 bytes */
static CUresult failed = CUDA_SUCCESS;                  /* the last error of a launch's execution */

/* ---- functions for tests ---- */

int stub_launches(void) { return launched; }
const Launched *stub_launch(int i) { return &launches[i]; }
int stub_modules_loaded(void) { return loaded; }
int stub_modules_unloaded(void) { return unloaded; }
int stub_refusals(void) { return refusals; }
const char *stub_refusal(void) { return refusal; }      /* the last one, in words */
void stub_clear(void) { launched = refusals = 0; refusal[0] = 0; failed = CUDA_SUCCESS; }

static CUresult refuse(CUresult error, const char *why, ...) {
    va_list rest;
    va_start(rest, why);
    vsnprintf(refusal, sizeof refusal, why, rest);
    va_end(rest);
    ++refusals;
    return error;
}

/* ---- execution: by whoever is given it ---- */

/* `prepare` notes a launch: all that it would need again when a graph repeats it. `perform` executes what was noted, and
 * forgets it unless it is kept. `assemble` gives the cubin of PTX, as the compiler within a driver would. */
typedef CUresult (*Prepare)(const Launched *, const void *image, size_t bytes, void **parameters, int *prepared);
typedef CUresult (*Perform)(int prepared, int keep);
typedef const void *(*Assemble)(const char *ptx, int capability);
static Prepare prepare = NULL;
static Perform perform = NULL;
static Assemble assemble = NULL;

void stub_execute(Prepare p, Perform q, Assemble a) { prepare = p, perform = q, assemble = a; }

/* A launch that failed where it was executed: the error that its caller gets, and in what words. */
CUresult stub_fail(CUresult error, const char *why) { return refuse(failed = error, "%s", why); }

CUresult cuGetErrorName(CUresult e, const char **s) { *s = "CUDA_ERROR"; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **s) {
    *s = e && e == failed ? refusal  /* a driver says less */
       : e == CUDA_ERROR_INVALID_CONTEXT ? "invalid device context"
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
    stub_own(at, bytes ? bytes : 1, current->device);
    *p = (CUdeviceptr)at;
    return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr p) {
    size_t bytes = stub_disown((void *)p);
    if (bytes) munmap((void *)p, bytes);
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
    ((Stream *)s)->graph = calloc(1, sizeof(Graph));
    captures_here += mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    __sync_fetch_and_add(&captures_global, mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream s, CUgraph *graph) {
    Stream *stream = (Stream *)s;
    stream->capturing = 0;
    captures_here -= stream->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    __sync_fetch_and_sub(&captures_global, stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
    *graph = (CUgraph)stream->graph;
    return CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *x, CUgraph g, unsigned long long flags) {
    *x = (CUgraphExec)graph_copy((Graph *)g);
    return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph g) { graph_free((Graph *)g); return CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec x) { graph_free((Graph *)x); return CUDA_SUCCESS; }
CUresult cuGraphLaunch(CUgraphExec x, CUstream s) {
    const Graph *graph = (Graph *)x;
    for (int i = 0; i < graph->count; ++i) {
        const Node *node = &graph->nodes[i];
        if (node->from) memmove(node->to, node->from, node->bytes);
        else if (node->to) memset(node->to, node->value, node->bytes);
        else if (perform) { CUresult e = perform(node->kernel, 1); if (e) return e; }
    }
    return CUDA_SUCCESS;
}

static Graph *captured(CUstream s) { return (uintptr_t)s >= 16 && ((Stream *)s)->capturing ? ((Stream *)s)->graph : NULL; }

/* `bytes` copied, or filled with `value` where there is no `from`: at once, or by the graph that the stream is captured to. */
void stub_move(CUstream s, void *to, const void *from, int value, size_t bytes) {
    if (captured(s)) graph_add(captured(s), (Node){-1, to, from, value, bytes});
    else if (from) memmove(to, from, bytes);
    else memset(to, value, bytes);
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
    int have = capability(current->device);
    if (assemble && !cubin_architecture(image)) image = assemble(image, have);
    int built_for = cubin_architecture(image);
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
                     .cluster = {1, 1, 1}, .attributes = c->numAttrs, .stream = (void *)c->hStream, .function = function,
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
    for (unsigned i = 0; i < c->numAttrs; ++i)
        if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) memcpy(made.cluster, &c->attrs[i].value.clusterDim, sizeof made.cluster);
    pthread_mutex_lock(&lock);
    if (thread < 0) thread = threads++;
    made.thread = thread;
    if (launched < MOST_LAUNCHES) launches[launched++] = made;
    pthread_mutex_unlock(&lock);
    if (!prepare) return CUDA_SUCCESS;
    int prepared = -1;
    CUresult e = prepare(&made, function->module->image, cubin_bytes(function->module->image), parameters, &prepared);
    if (e) return e;
    if (!captured(c->hStream)) return perform(prepared, 0);
    graph_add(captured(c->hStream), (Node){.kernel = prepared});
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void **parameters, void **extra) {
    CUlaunchConfig c = {gx, gy, gz, bx, by, bz, shared, s, NULL, 0};
    return cuLaunchKernelEx(&c, f, parameters, extra);
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address, const cuuint64_t *sizes,
                                const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
                                CUtensorMapFloatOOBfill fill) {
    if (!current) return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuTensorMapEncodeTiled: no context is current in this thread");
    const char *wrong = tensor_map_encode((TensorMap *)map, type, rank, address, sizes, strides, box, element_strides, interleave,
                                          swizzle, fill);
    return wrong ? refuse(CUDA_ERROR_INVALID_VALUE, "a descriptor for the copy engine: %s", wrong) : CUDA_SUCCESS;
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
