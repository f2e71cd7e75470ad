/* A CUDA runtime without a GPU, preloaded before PyTorch's libcudart.so.13: torch.cuda finds the GPUs of libcuda.c.
 *
 * Memory is the host's, copies copy, streams and events are in order by being synchronous. PyTorch's own kernels do
 * nothing, so their values mean nothing; a graph repeats what its capture launched and copied, but for those. What a test
 * relies on is real: PyTorch's allocator, streams, captures, autograd threads, and every module that is loaded and kernel that is launched through the
 * driver. What is not defined here goes to the real runtime, which finds no GPU and says so. */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int stub_capability(int device), stub_device_attribute(int attribute, int device), stub_owner(const void *);
extern void stub_move(CUstream, void *to, const void *from, int value, size_t bytes);

static _Thread_local int device = 0;
static _Thread_local cudaError_t last = cudaSuccess;
static long kernels = 0;                                /* of PyTorch's own, launched and not run */

long stub_runtime_kernels(void) { return kernels; }

static cudaError_t remember(cudaError_t e) { if (e) last = e; return e; }
static cudaError_t runtime_error(CUresult e) { return remember((cudaError_t)e); }  /* the numbers are the same */
#define OK return cudaSuccess

/* What every call does that needs a context: the first in a thread makes the primary one of its device current. */
static cudaError_t initialise(void) {
    CUcontext context;
    cuCtxGetCurrent(&context);
    if (context) OK;
    CUresult e = cuDevicePrimaryCtxRetain(&context, device);
    return runtime_error(e ? e : cuCtxSetCurrent(context));
}
#define NEEDS_CONTEXT do { cudaError_t e_ = initialise(); if (e_) return e_; } while (0)

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *n) { cuDeviceGetCount(n); return *n ? cudaSuccess : remember(cudaErrorNoDevice); }
cudaError_t cudaGetDevice(int *d) { *d = device; OK; }
cudaError_t cudaSetDevice(int d) {
    if (!stub_capability(d)) return remember(cudaErrorInvalidDevice);
    CUcontext context;
    cuDevicePrimaryCtxRetain(&context, device = d);
    return runtime_error(cuCtxSetCurrent(context));
}
cudaError_t cudaDriverGetVersion(int *v) { return runtime_error(cuDriverGetVersion(v)); }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; OK; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; OK; }
cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:%02d:00.0", d + 1); OK; }
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { *v = stub_device_attribute((int)a, d); OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    if (!stub_capability(d)) return remember(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    cuDeviceGetName(p->name, sizeof p->name, d);
    cuDeviceTotalMem(&p->totalGlobalMem, d);
    p->major = stub_capability(d) / 10;
    p->minor = stub_capability(d) % 10;
    p->warpSize = 32;
    p->multiProcessorCount = stub_device_attribute(cudaDevAttrMultiProcessorCount, d);
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = stub_device_attribute(cudaDevAttrMaxThreadsPerMultiProcessor, d);
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = stub_device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, d);
    p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->l2CacheSize = 50 << 20;
    p->memoryBusWidth = 5120;
    p->pciBusID = d + 1;
    p->maxGridSize[0] = INT32_MAX;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->unifiedAddressing = p->concurrentKernels = 1;
    p->maxBlocksPerMultiProcessor = 32;
    OK;
}
cudaError_t cudaDeviceSynchronize(void) { NEEDS_CONTEXT; OK; }

const char *cudaGetErrorName(cudaError_t e) { return "cudaError"; }
const char *cudaGetErrorString(cudaError_t e) {
    const char *s;
    cuGetErrorString((CUresult)e, &s);
    return s;
}
cudaError_t cudaGetLastError(void) { cudaError_t e = last; last = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError(void) { return last; }

static CUresult unsupported(void) { return CUDA_ERROR_NOT_SUPPORTED; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *s, void **f, unsigned v, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    if (cuGetProcAddress(s, f, v, flags, NULL)) *f = (void *)unsupported;  /* PyTorch looks up more than it calls */
    if (result) *result = cudaDriverEntryPointSuccess;
    OK;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **p, size_t n) { NEEDS_CONTEXT; return runtime_error(cuMemAlloc((CUdeviceptr *)p, n)); }
cudaError_t cudaFree(void *p) { NEEDS_CONTEXT; return runtime_error(cuMemFree((CUdeviceptr)p)); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { *p = malloc(n); OK; }
cudaError_t cudaFreeHost(void *p) { free(p); OK; }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *free = 79ull << 30; *total = 80ull << 30; OK; }
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) { NEEDS_CONTEXT; memmove(to, from, n); OK; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) { NEEDS_CONTEXT; stub_move(s, to, from, 0, n); OK; }
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t n, cudaStream_t s) { return cudaMemcpyAsync(to, from, n, cudaMemcpyDefault, s); }
cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t n, size_t at, enum cudaMemcpyKind k) { OK; }
cudaError_t cudaMemset(void *p, int v, size_t n) { NEEDS_CONTEXT; memset(p, v, n); OK; }
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { NEEDS_CONTEXT; stub_move(s, p, NULL, v, n); OK; }
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) { return cudaMalloc(p, 4096); }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->device = stub_owner(p);
    a->type = a->device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
    a->devicePointer = (void *)p;
    OK;
}

/* ---- PyTorch's own kernels ---- */

static cudaError_t ran(void) { NEEDS_CONTEXT; __sync_fetch_and_add(&kernels, 1); OK; }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **p, size_t shared, cudaStream_t s) { return ran(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **p) { return ran(); }
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **p, size_t shared, cudaStream_t s) { return ran(); }
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; OK; }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *p) { f(p); OK; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->ptxVersion = a->binaryVersion = stub_capability(device);
    OK;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { OK; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) { *n = 2; OK; }

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { NEEDS_CONTEXT; return runtime_error(cuStreamCreate(s, flags)); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return cudaStreamCreateWithFlags(s, flags); }
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return runtime_error(cuStreamDestroy(s)); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; OK; }
cudaError_t cudaStreamQuery(cudaStream_t s) { NEEDS_CONTEXT; OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { NEEDS_CONTEXT; OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    CUstreamCaptureStatus status;
    cuStreamIsCapturing(s, &status);
    return status == CU_STREAM_CAPTURE_STATUS_NONE ? cudaSuccess : remember(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { NEEDS_CONTEXT; *e = malloc(8); OK; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); OK; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { NEEDS_CONTEXT; OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { NEEDS_CONTEXT; OK; }
cudaError_t cudaEventQuery(cudaEvent_t e) { OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { OK; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 0.1f; OK; }

/* ---- captures and graphs ---- */

static unsigned long long captures = 0;                 /* PyTorch wants a number for each */

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    return runtime_error(cuThreadExchangeStreamCaptureMode((CUstreamCaptureMode *)mode));
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    ++captures;
    return runtime_error(cuStreamBeginCapture(s, (CUstreamCaptureMode)mode));
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { return runtime_error(cuStreamEndCapture(s, g)); }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    return runtime_error(cuStreamIsCapturing(s, (CUstreamCaptureStatus *)status));
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
    if (id) *id = captures;
    if (g) *g = NULL;
    if (d) *d = NULL;
    if (e) *e = NULL;
    if (n) *n = 0;
    return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags) { return runtime_error(cuGraphInstantiateWithFlags(x, g, flags)); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { NEEDS_CONTEXT; return runtime_error(cuGraphLaunch(x, s)); }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return runtime_error(cuGraphDestroy(g)); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { return runtime_error(cuGraphExecDestroy(x)); }
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) { *n = 1; OK; }
cudaError_t cudaUserObjectCreate(cudaUserObject_t *o, void *p, cudaHostFn_t destroy, unsigned count, unsigned flags) { *o = (cudaUserObject_t)calloc(1, 8); OK; }
cudaError_t cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned count, unsigned flags) { OK; }
cudaError_t cudaUserObjectRelease(cudaUserObject_t o, unsigned count) { OK; }
