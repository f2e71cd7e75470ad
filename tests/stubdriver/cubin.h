/* A reader of cubins, as a driver has it: the architecture, and of each kernel its parameters, registers, shared memory
 * and the block that it was compiled for. An ELF file of 64 bits; attributes are in the sections .nv.info and .nv.info.NAME
 * (cuobjdump -elf prints them). */
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PARAMETERS = 128, MACHINE_CUDA = 190, OLDER_ABI = 7 };
enum { HAS_SIZE = 4, MAX_THREADS = 0x05, REQNTID = 0x10, KPARAM_INFO = 0x17, REGCOUNT = 0x2f, KPARAM_INFO_V2 = 0x45 };

typedef struct {
    char name[128];
    int registers, shared;            /* of a thread; bytes of a block that are static */
    unsigned threads[3];              /* of a block, if it was compiled for that alone (.reqntid) */
    int most_threads;                 /* (.maxntid), or 0 */
    int parameters, sizes[MOST_PARAMETERS];
} Kernel;

/* The compute capability that it was compiled for, times ten; 0: it is no cubin. */
static int cubin_architecture(const void *image) {
    const Elf64_Ehdr *header = image;
    if (!image || memcmp(image, ELFMAG, SELFMAG) || header->e_machine != MACHINE_CUDA) return 0;
    return header->e_ident[EI_ABIVERSION] <= OLDER_ABI ? header->e_flags & 0xff : header->e_flags >> 8 & 0xff;
}

static const Elf64_Shdr *cubin_section(const char *image, const char *name) {
    const Elf64_Ehdr *header = (const void *)image;
    const Elf64_Shdr *sections = (const void *)(image + header->e_shoff);
    const char *names = image + sections[header->e_shstrndx].sh_offset;
    for (int i = 0; i < header->e_shnum; ++i)
        if (!strcmp(names + sections[i].sh_name, name)) return &sections[i];
    return NULL;
}

static size_t cubin_bytes(const void *image) {
    const Elf64_Ehdr *header = image;
    const Elf64_Shdr *sections = (const void *)((const char *)image + header->e_shoff);
    size_t end = header->e_shoff + header->e_shnum * sizeof *sections;
    size_t programs = header->e_phoff + header->e_phnum * sizeof(Elf64_Phdr);
    end = programs > end ? programs : end;
    for (int i = 0; i < header->e_shnum; ++i) {
        size_t last = sections[i].sh_type == SHT_NOBITS ? 0 : sections[i].sh_offset + sections[i].sh_size;
        end = last > end ? last : end;
    }
    return end;
}

/* A copy: whoever loads may free the bytes. */
static void *cubin_copy(const void *image) { return memcpy(malloc(cubin_bytes(image)), image, cubin_bytes(image)); }

/* The attributes of a section one after the other: one byte of form, one of what, two of size or value, the value. */
typedef struct { const unsigned char *at, *end; int what, size; const uint32_t *value; } Attributes;

static int cubin_next(Attributes *a) {
    if (a->at + 4 > a->end) return 0;
    a->what = a->at[1];
    a->size = a->at[0] == HAS_SIZE ? a->at[2] | a->at[3] << 8 : 0;
    a->value = (const void *)(a->at + 4);
    a->at += 4 + a->size;
    return 1;
}

static Attributes cubin_attributes(const char *image, const Elf64_Shdr *section) {
    const unsigned char *at = (const void *)(image + section->sh_offset);
    return (Attributes){at, at + section->sh_size, 0, 0, NULL};
}

/* Whether there is such a kernel; what is known of it. */
static int cubin_kernel(const char *image, const char *name, Kernel *k) {
    char of[192];
    snprintf(of, sizeof of, ".nv.info.%s", name);
    const Elf64_Shdr *own = cubin_section(image, of), *all = cubin_section(image, ".nv.info");
    snprintf(of, sizeof of, ".nv.shared.%s", name);
    const Elf64_Shdr *shared = cubin_section(image, of);
    const Elf64_Shdr *symbols = cubin_section(image, ".symtab"), *names = cubin_section(image, ".strtab");
    if (!own || !all || !symbols || !names) return 0;
    memset(k, 0, sizeof *k);
    snprintf(k->name, sizeof k->name, "%s", name);
    int reserved = cubin_architecture(image) >= 90 ? 1024 : 0;  /* of each block, by the system; no limit counts it */
    k->shared = shared && (int)shared->sh_size > reserved ? (int)shared->sh_size - reserved : 0;
    for (Attributes a = cubin_attributes(image, own); cubin_next(&a);) {
        if (!a.size) continue;
        if (a.what == REQNTID) memcpy(k->threads, a.value, sizeof k->threads);
        if (a.what == MAX_THREADS) k->most_threads = a.value[0] * a.value[1] * a.value[2];
        if (a.what == KPARAM_INFO_V2) abort();          /* of a compiler that is newer than this reader */
        if (a.what == KPARAM_INFO) {                    /* words: index; ordinal and offset; bytes in the upper 14 bits */
            int ordinal = a.value[1] & 0xffff;
            if (ordinal >= MOST_PARAMETERS) abort();
            k->sizes[ordinal] = a.value[2] >> 18;
            k->parameters = ordinal >= k->parameters ? ordinal + 1 : k->parameters;
        }
    }
    for (Attributes a = cubin_attributes(image, all); cubin_next(&a);) {
        if (!a.size || a.what != REGCOUNT) continue;
        const Elf64_Sym *symbol = (const Elf64_Sym *)(image + symbols->sh_offset) + a.value[0];
        if (!strcmp(image + names->sh_offset + symbol->st_name, name)) k->registers = a.value[1];
    }
    return k->registers > 0;
}
