// Modules, kernels and NVRTC of the emulated driver. NVRTC "compiles" with the host's C++ compiler:
// the CUBIN is a shared library behind a short header. What was compiled is kept on disk under the
// hash of everything that went into it, in TREEATTN_EMULATION_CACHE (default: treeattn-emulation
// in the temporary folder, one for each user). TREEATTN_EMULATION_FLAGS are more flags for g++.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "driver.hpp"

namespace emulation {
namespace {

namespace fs = std::filesystem;

// The twin headers, part of this library so that it needs no folder beside it.
constexpr const char* emulation_header =
#include "emulation.hpp.inc"
    ;
constexpr const char* primitives_header =
#include "primitives.cuh.inc"
    ;

struct program {
  std::string source, name, log, image;
  std::map<std::string, std::string> headers, lowered;
};

enum {
  nvrtc_success = 0,
  nvrtc_invalid_input = 3,
  nvrtc_invalid_option = 5,
  nvrtc_compilation = 6,
  nvrtc_no_name = 10
};

std::string hash_of(const std::string& text) {  // FNV-1a, 128 bits
  const auto prime = (static_cast<unsigned __int128>(1) << 88) + 0x13b;
  auto hash = (static_cast<unsigned __int128>(0x6c62272e07bb0142u) << 64) | 0x62b821756295c58du;
  for (unsigned char c : text)
    hash = (hash ^ c) * prime;
  char digits[33];
  std::snprintf(digits, sizeof digits, "%016llx%016llx",
                static_cast<unsigned long long>(hash >> 64), static_cast<unsigned long long>(hash));
  return digits;
}

// Changes whenever the emulation does: an image of another build is refused.
const std::string& build_tag() {
  static const std::string tag =
      "EMULATED" + hash_of(std::string(emulation_header) + primitives_header);
  return tag;
}

std::string read_file(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

fs::path cache_folder() {
  const std::string chosen = setting_text("TREEATTN_EMULATION_CACHE");
  if (!chosen.empty()) return chosen;
  return fs::temp_directory_path() / ("treeattn-emulation-" + std::to_string(getuid()));
}

// The translation unit: the source, and a registration for each name expression.
std::string unit_of(const program& p) {
  std::string unit = "#include \"emulation.hpp\"\n#line 1 \"" + p.name + "\"\n" + p.source + "\n";
  for (auto& [expression, name] : p.lowered) {
    unit += "EMULATED_KERNEL(" + name + ", " + expression + ");\n";
  }
  return unit;
}

// What the host asks NVRTC for, as NVRTC 12 and 13 spell it; a misspelt option is refused there
// too.
bool is_option(const std::string& option) {
  const std::string architecture = "--gpu-architecture=";
  if (option.starts_with(architecture)) {
    const std::string chosen = option.substr(architecture.size());
    for (const char* number : {"80", "86", "87", "89", "90"}) {
      if (chosen == std::string("sm_") + number || chosen == std::string("compute_") + number)
        return true;
    }
    return false;
  }
  return option == "--std=c++17" || option == "--fmad=false" || option.starts_with("-D");
}

std::string flags_of(int count, const char* const* options) {
  std::string flags =
      "-std=c++20 -O1 -g -fPIC -shared -Wno-unknown-pragmas"
      " -ftrivial-auto-var-init=pattern";
  flags += " " + setting_text("TREEATTN_EMULATION_FLAGS");
  for (int i = 0; i < count; ++i) {
    const std::string option = options[i];
    if (option.starts_with("-D")) flags += " '" + option + "'";
  }
  return flags;
}

int run_compiler(const std::string& command, std::string& log) {
  FILE* const output = popen(command.c_str(), "r");
  if (!output) {
    log = "the shell that runs g++ could not be started";
    return -1;
  }
  char buffer[4096];
  for (std::size_t n; (n = fread(buffer, 1, sizeof buffer, output)) > 0;)
    log.append(buffer, n);
  const int status = pclose(output);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Compiles into `target`; files of a compilation appear there at once or not at all.
bool compile(program& p, const std::string& unit, const std::string& flags,
             const fs::path& target) {
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&hash_of), &self);
  std::string pattern = target.string() + "-XXXXXX";
  if (!mkdtemp(pattern.data())) {
    p.log = "no folder can be made at " + pattern;
    return false;
  }
  const fs::path work = pattern;
  for (auto& [name, text] : p.headers)
    std::ofstream(work / name) << text;
  std::ofstream(work / "emulation.hpp") << emulation_header;
  std::ofstream(work / "primitives.cuh") << primitives_header;
  std::ofstream(work / "unit.cpp") << unit;
  const std::string library = (work / "unit.so").string();
  const int status =
      run_compiler("g++ " + flags + " -I '" + work.string() + "' -o '" + library + "' '" +
                       (work / "unit.cpp").string() + "' '" + self.dli_fname + "' 2>&1",
                   p.log);
  if (status == 0) fs::rename(library, target);
  fs::remove_all(work);
  return status == 0;
}

bool put_image(program& p, const std::string& flags) {
  const std::string unit = unit_of(p);
  std::string all = build_tag() + flags + '\0' + unit;
  for (auto& [name, text] : p.headers)
    all += '\0' + name + '\0' + text;
  std::error_code failed;
  fs::create_directories(cache_folder(), failed);
  const fs::path target = cache_folder() / hash_of(all);
  if (!fs::exists(target) && !compile(p, unit, flags, target)) return false;
  p.image = build_tag();
  const std::string bytes = read_file(target);
  const std::uint64_t length = bytes.size();
  p.image.append(reinterpret_cast<const char*>(&length), sizeof length);
  p.image += bytes;
  return true;
}

}  // namespace
}  // namespace emulation

using namespace emulation;

CUDA_API cuModuleLoadData(module** m, const void* image) {
  std::lock_guard lock(the_driver.mutex);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  REQUIRE(has_context(), invalid_context);
  const std::size_t tag = build_tag().size();
  REQUIRE(!std::strncmp(static_cast<const char*>(image), build_tag().c_str(), tag), invalid_image);
  std::uint64_t bytes;
  std::memcpy(&bytes, static_cast<const char*>(image) + tag, sizeof bytes);
  char path[] = P_tmpdir "/treeattn-emulated-XXXXXX";
  const int file = mkstemp(path);
  REQUIRE(file >= 0, invalid_image);
  const bool written = write(file, static_cast<const char*>(image) + tag + sizeof bytes, bytes) ==
                       static_cast<ssize_t>(bytes);
  close(file);
  void* library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (!library && written) the_driver.message = dlerror();
  unlink(path);
  REQUIRE(library, invalid_image);
  *m = new module{library, current_context, {}};
  return success;
}

CUDA_API cuModuleUnload(module* m) {
  std::lock_guard lock(the_driver.mutex);
  dlclose(m->library);
  delete m;
  return success;
}

CUDA_API cuModuleGetFunction(function** f, module* m, const char* name) {
  std::lock_guard lock(the_driver.mutex);
  auto* code = static_cast<const kernel*>(dlsym(m->library, name));
  REQUIRE(code, not_found);
  auto& known = m->functions[name];
  if (!known) known.reset(new function{code, m->home});
  *f = known.get();
  return success;
}

CUDA_API cuFuncSetAttribute(function* f, int attribute, int value) {
  constexpr int max_dynamic_shared_size_bytes = 8;
  REQUIRE(attribute == max_dynamic_shared_size_bytes, invalid_value);
  REQUIRE(value >= 0 && std::size_t(value) <= shared_limit, invalid_value);
  f->shared_bytes = value;
  return success;
}

CUDA_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, function*, int,
                                                     std::size_t shared_bytes) {
  *blocks = int(shared_limit / (shared_bytes + 1024));
  return success;
}

CUDA_API cuLaunchKernel(function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared_bytes, stream* on,
                        void** arguments, void**) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  if (the_driver.streams.contains(on)) {  // else the null stream, which has its own rules
    REQUIRE(on->home == current_context && f->home == current_context, invalid_handle);
  }
  REQUIRE(gx && gy && gz && gx <= 0x7fffffff && gy <= 65535 && gz <= 65535, invalid_value);
  REQUIRE(bx && by && bz && bx * by * bz <= 1024 && bz <= 64, invalid_value);
  REQUIRE(shared_bytes <= f->shared_bytes || shared_bytes <= shared_limit_unasked, invalid_value);
  std::vector<std::string> values;  // copied now, as the driver does
  for (unsigned i = 0; i < f->code->argument_count; ++i) {
    values.emplace_back(static_cast<char*>(arguments[i]), f->code->argument_bytes[i]);
  }
  const std::uint64_t seed = the_driver.seed == 0 ? 0 : the_driver.random();
  const launch_shape shape{{gx, gy, gz}, {bx, by, bz}, shared_bytes, seed};
  return the_driver.put(on, {nullptr, [code = f->code, shape, values](std::string& why) mutable {
                               std::vector<void*> pointers;
                               for (auto& v : values)
                                 pointers.push_back(v.data());
                               why = launch(*code, shape, pointers.data());
                               return why.empty() ? success : launch_failed;
                             }});
}

CUDA_API nvrtcVersion(int* major, int* minor) {
  *major = 12;
  *minor = 4;
  return nvrtc_success;
}

CUDA_API nvrtcCreateProgram(program** p, const char* source, const char* name, int count,
                            const char* const* headers, const char* const* names) {
  REQUIRE(source, nvrtc_invalid_input);
  *p = new program{source, name ? name : "kernel.cu", {}, {}, {}, {}};
  for (int i = 0; i < count; ++i)
    (*p)->headers[names[i]] = headers[i];
  return nvrtc_success;
}

CUDA_API nvrtcDestroyProgram(program** p) {
  delete *p;
  *p = nullptr;
  return nvrtc_success;
}

CUDA_API nvrtcAddNameExpression(program* p, const char* expression) {
  p->lowered.emplace(expression, "emulated_kernel_" + std::to_string(p->lowered.size()));
  return nvrtc_success;
}

CUDA_API nvrtcGetLoweredName(program* p, const char* expression, const char** name) {
  auto found = p->lowered.find(expression);
  REQUIRE(found != p->lowered.end(), nvrtc_no_name);
  *name = found->second.c_str();
  return nvrtc_success;
}

CUDA_API nvrtcCompileProgram(program* p, int count, const char* const* options) {
  p->log.clear();
  for (int i = 0; i < count; ++i)
    REQUIRE(is_option(options[i]), nvrtc_invalid_option);
  return put_image(*p, flags_of(count, options)) ? nvrtc_success : nvrtc_compilation;
}

CUDA_API nvrtcGetProgramLogSize(program* p, std::size_t* bytes) {
  *bytes = p->log.size() + 1;
  return nvrtc_success;
}

CUDA_API nvrtcGetProgramLog(program* p, char* log) {
  std::memcpy(log, p->log.c_str(), p->log.size() + 1);
  return nvrtc_success;
}

CUDA_API nvrtcGetCUBINSize(program* p, std::size_t* bytes) {
  *bytes = p->image.size();
  return nvrtc_success;
}

CUDA_API nvrtcGetCUBIN(program* p, char* image) {
  std::memcpy(image, p->image.data(), p->image.size());
  return nvrtc_success;
}

// Real hosts ask for PTX where the compiler is older than the GPU; here both are the same image.
CUDA_API nvrtcGetPTXSize(program* p, std::size_t* bytes) {
  return nvrtcGetCUBINSize(p, bytes);
}
CUDA_API nvrtcGetPTX(program* p, char* image) {
  return nvrtcGetCUBIN(p, image);
}

extern "C" [[gnu::visibility("default")]] const char* nvrtcGetErrorString(int result) {
  switch (result) {
    case nvrtc_success:
      return "NVRTC_SUCCESS";
    case nvrtc_invalid_input:
      return "NVRTC_ERROR_INVALID_INPUT";
    case nvrtc_invalid_option:
      return "NVRTC_ERROR_INVALID_OPTION";
    case nvrtc_compilation:
      return "NVRTC_ERROR_COMPILATION";
    case nvrtc_no_name:
      return "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID";
    default:
      return "NVRTC_ERROR_INTERNAL_ERROR";
  }
}
