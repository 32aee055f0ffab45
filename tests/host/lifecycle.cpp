// Beginnings and ends of a host program: `lifecycle TASK` prints what it finds.
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "pair.h"

namespace {

using dinoreg::Arguments;
using dinoreg::HostError;
using dinoreg::Registrar;

void tell(const char* what, dr_host_status status) {
  std::cout << what << ": " << status << " " << dr_host_last_error() << "\n";
}

// The first registrars of a process, made by several threads at the same time.
int together() {
  std::atomic<int> ready = 0, made = 0;
  std::vector<std::thread> team;
  for (int i = 0; i < 4; ++i)
    team.emplace_back([&] {
      for (++ready; ready < 4;) std::this_thread::yield();
      Registrar registrar({.options = kOptions});
      ++made;
    });
  for (auto& thread : team) thread.join();
  std::cout << made << " made\n";
  return 0;
}

// cycles COUNT: registrars come and go; prints what the process has more of after the first tenth.
int cycles(int count) {
  const Pair pair;
  const auto cycle = [&](int i) {
    Registrar registrar({.options = kOptions, .workers = 2});
    if (i % 50 == 0) registrar.submit(Arguments(pair.first(), pair.second())).wait();
  };
  for (int i = 0; i < count / 10; ++i) cycle(i);
  const long memory = of_this_process("VmRSS"), threads = of_this_process("Threads");
  const long files = open_files();
  for (int i = 0; i < count; ++i) cycle(i);
  std::cout << of_this_process("VmRSS") - memory << " kB, " << of_this_process("Threads") - threads
            << " threads, " << open_files() - files << " files\n";
  return 0;
}

int begun(void* user, const char*, double) {
  *static_cast<std::atomic<bool>*>(user) = true;
  return 0;
}

// The registrar is destroyed while one registration runs and another waits for its turn.
int destroyed() {
  const Pair pair;
  std::atomic<bool> running = false;
  Arguments arguments(pair.first(), pair.second());
  std::vector<float> displacement(3 * pair.fixed.size());
  arguments.displacement(displacement);
  arguments.progress(begun, &running);
  auto registrar = std::make_unique<Registrar>(
      dinoreg::RegistrarOptions{.options = "initial = 'none'\niterations = [10000]"});
  auto first = registrar->submit(arguments), second = registrar->submit(arguments);
  while (!running) std::this_thread::yield();
  registrar.reset();
  for (auto* registration : {&first, &second}) try {
      registration->wait();
      std::cout << "not cancelled\n";
    } catch (const HostError& error) {
      std::cout << error.status() << " " << error.what() << "\n";
    }
  return 0;
}

struct Inside {
  dr_registrar* registrar;
  dr_registration_args args;
  int calls = 0;
};

int call_again(void* user, const char*, double) {
  auto* inside = static_cast<Inside*>(user);
  if (inside->calls++) return 0;
  dr_registration_result result = DR_REGISTRATION_RESULT_INIT;
  tell("run", dr_registrar_run(inside->registrar, &inside->args, &result));
  dr_registration* registration = nullptr;
  tell("submit", dr_registrar_submit(inside->registrar, &inside->args, &registration));
  dr_registrar_destroy(inside->registrar);
  std::cout << "destroy: " << dr_host_last_error() << "\n";
  return 0;
}

// A progress callback calls the library, which the header forbids.
int reentered() {
  const Pair pair;
  dr_registrar_args options = DR_REGISTRAR_ARGS_INIT;
  options.options = kOptions;
  Inside inside{nullptr, DR_REGISTRATION_ARGS_INIT};
  dr_registrar_create(&options, &inside.registrar);
  const auto first = pair.first(), second = pair.second();
  inside.args.fixed = &first.get();
  inside.args.moving = &second.get();
  dr_registration_args outer = inside.args;
  outer.progress = call_again;
  outer.user = &inside;
  dr_registration_result result = DR_REGISTRATION_RESULT_INIT;
  tell("outer", dr_registrar_run(inside.registrar, &outer, &result));
  dr_registration_result_free(&result);
  tell("then", dr_registrar_run(inside.registrar, &inside.args, &result));
  dr_registration_result_free(&result);
  dr_registrar_destroy(inside.registrar);
  return 0;
}

// The host ends the interpreter before it lets go of its registrar.
int finalised() {
  dr_registrar_args options = DR_REGISTRAR_ARGS_INIT;
  options.options = kOptions;
  dr_registrar* registrar = nullptr;
  tell("create", dr_registrar_create(&options, &registrar));
  const auto lock = (int (*)())dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
  const auto finalise = (int (*)())dlsym(RTLD_DEFAULT, "Py_FinalizeEx");
  lock();
  finalise();
  tell("warm_up", dr_registrar_warm_up(registrar, nullptr, nullptr));
  dr_registrar_destroy(registrar);
  return 0;
}

// One registrar with the interpreter that the environment names.
int make() {
  dr_registrar_args options = DR_REGISTRAR_ARGS_INIT;
  dr_registrar* registrar = nullptr;
  tell("create", dr_registrar_create(&options, &registrar));
  dr_registrar_destroy(registrar);
  return 0;
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string task = count > 1 ? arguments[1] : "";
  if (task == "together") return together();
  if (task == "cycles") return cycles(atoi(arguments[2]));
  if (task == "destroyed") return destroyed();
  if (task == "reentered") return reentered();
  if (task == "finalised") return finalised();
  if (task == "make") return make();
  return 2;
} catch (const std::exception& error) {
  std::cout << "error: " << error.what() << "\n";
  return 1;
}
