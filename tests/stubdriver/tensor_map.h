/* Descriptors of tensors for the copy engine. A real descriptor's 128 bytes are a secret of the hardware; these
 * are those that gpuconv.emulator reads (gpuconv/emulator/tensor_map.py), in the numbers of PTX's tensormap.replace. */
#include <cuda.h>
#include <stdint.h>
#include <string.h>

typedef struct __attribute__((packed)) {
    uint64_t address;
    uint32_t rank_minus_1, box[5], size[5], element_stride[5];
    uint8_t element_type, interleave, swizzle, fill;
    uint64_t stride[5];                                  /* bytes, of the axes from the second on */
    char magic[8], zero[4];
} TensorMap;
_Static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "a descriptor is of 128 bytes");

/* By CUtensorMapDataType: PTX's .elemtype, and bytes. */
static const uint8_t element_types[] = {0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 8, 11, 12};
static const uint8_t element_bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};

/* What is wrong with these arguments, by the rules of cuTensorMapEncodeTiled; NULL: nothing, and it is made. */
static const char *tensor_map_encode(TensorMap *map, unsigned type, unsigned rank, const void *address, const cuuint64_t *sizes,
                                     const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *element_strides,
                                     unsigned interleave, unsigned swizzle, unsigned fill) {
    if (type >= sizeof element_types) return "the type of its elements";
    if (rank < 1 || rank > 5 || (interleave && rank < 3)) return "its rank";
    if (interleave > 2 || swizzle > 3 || fill > 1) return "its interleaving, swizzle or fill";
    if (interleave == 2 && swizzle != 1) return "its swizzle, which is of 32 bytes with slices of 32";
    if (fill && type < CU_TENSOR_MAP_DATA_TYPE_FLOAT16) return "its fill with NaN, which integers have not";
    if ((uintptr_t)map % 64) return "where it is to lie, which is no multiple of 64 bytes";
    if (!address || (uintptr_t)address % (interleave == 2 ? 32 : 16)) return "its address, which is no multiple of 16 bytes";
    memset(map, 0, sizeof *map);
    for (unsigned i = 0; i < rank; ++i) {
        if (sizes[i] < 1 || sizes[i] > 1ull << 32) return "a size";
        if (box[i] < 1 || box[i] > 256) return "a size of its box";
        if (element_strides[i] < 1 || element_strides[i] > 8) return "the stride between elements";
        if (i && (strides[i - 1] % (interleave == 2 ? 32 : 16) || strides[i - 1] >= 1ull << 40)) return "a stride";
        map->size[i] = (uint32_t)sizes[i];
        map->box[i] = box[i];
        map->element_stride[i] = element_strides[i];
        if (i) map->stride[i - 1] = strides[i - 1];
    }
    unsigned inner = box[0] * element_bytes[type];
    if (!interleave && inner % 16) return "the inner size of its box, which is no multiple of 16 bytes";
    if (!interleave && swizzle && inner > 16u << swizzle) return "the inner size of its box, which is more than the swizzle spans";
    map->address = (uint64_t)(uintptr_t)address;
    map->rank_minus_1 = rank - 1;
    map->element_type = element_types[type];
    map->interleave = (uint8_t)interleave;
    map->swizzle = (uint8_t)swizzle;
    map->fill = (uint8_t)fill;
    memcpy(map->magic, "GPUCONVT", sizeof map->magic);
    return NULL;
}
