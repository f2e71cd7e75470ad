// Runs one recorded launch, for the sanitizers: a process of its own, with no Python in it.
//
//   replay FUNCTION ORDER BEFORE AFTER
//
// BEFORE (written by host_cuda.py): blocks, threads, shared memory, bytes of the struct, number of tensors, the sizes
// of all tensors, all 64-bit; then the struct and the tensors. A tensor of size −1 is a null pointer. AFTER gets the
// tensors back. Every tensor lies in memory of exactly its size, so that the address sanitizer sees a step beyond it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <string>
#include <vector>

int main(int, char** arguments) {
  using Kernel = void (*)(unsigned, unsigned, unsigned, void**, unsigned);
  const auto kernel = reinterpret_cast<Kernel>(dlsym(RTLD_DEFAULT, ("launch_" + std::string(arguments[1])).c_str()));
  std::FILE* before = std::fopen(arguments[3], "rb");
  std::FILE* after = std::fopen(arguments[4], "wb");
  if (!kernel || !before || !after) return 3;
  const auto read = [&](void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, before) != bytes) std::exit(4);
  };
  int64_t blocks, threads, shared, size_of_struct, tensors;
  for (int64_t* value : {&blocks, &threads, &shared, &size_of_struct, &tensors}) read(value, sizeof *value);
  std::vector<int64_t> sizes(tensors);
  read(sizes.data(), sizes.size() * sizeof(int64_t));
  void* the_struct = std::malloc(size_of_struct);
  read(the_struct, size_of_struct);
  std::vector<void*> values(tensors), parameters;
  for (int64_t i = 0; i < tensors; ++i) {
    values[i] = sizes[i] < 0 ? nullptr : std::malloc(sizes[i]);
    if (sizes[i] > 0) read(values[i], sizes[i]);
    parameters.push_back(&values[i]);
  }
  parameters.push_back(the_struct);
  kernel(blocks, threads, shared, parameters.data(), std::atoi(arguments[2]));
  for (int64_t i = 0; i < tensors; ++i) {
    if (sizes[i] > 0) std::fwrite(values[i], 1, sizes[i], after);
    std::free(values[i]);
  }
  std::free(the_struct);
  std::fclose(before);
  std::fclose(after);
}
