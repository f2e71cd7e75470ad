/* The GPUs that there are, by the environment: STUB_GPUS=90,90,80. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHARED_WITHOUT_ASKING = 48 << 10 };

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
