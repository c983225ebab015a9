# A thin front: Meson and Ninja do the work, scripts/ what surrounds it. `make help` lists the targets.
BUILD ?= build
MESON_FLAGS ?=
PREFIX ?= /usr/local
NINJA = ninja -C

all: deps-build $(BUILD)/build.ninja ## build build/virta
	$(NINJA) $(BUILD)

# Only the program, without its tests.
virta: deps-build $(BUILD)/build.ninja
	$(NINJA) $(BUILD) virta

# What a target needs from Debian: installed as root, named otherwise. At once when all is there.
deps-%:
	@scripts/deps $*

$(BUILD)/build.ninja: | deps-build
	meson setup $(BUILD) --prefix $(PREFIX) $(MESON_FLAGS)

run: deps-run virta ## boot Debian's kernel to a shell (a scripted demo without a terminal)
	@scripts/guest
	@scripts/run

run-debian: deps-run-debian virta ## boot Debian with systemd to a login prompt
	@scripts/guest
	@scripts/run-debian

test: deps-test all ## everything that is proved on each change
	@scripts/test quick

test-long: deps-test-long all ## what takes longer: ten million instruction cases, thirty boots
	@scripts/test long

bench: deps-bench all ## the table of docs/bench.md
	@scripts/guest
	@bench/run

bench-cpu: deps-bench-cpu virta ## the table of docs/bench-cpu.md: the software processor beside QEMU's, row by row
	@scripts/guest
	@bench/cpu/run

bench-disk: deps-bench-disk virta ## a table: disks over NBD and conversions, beside QEMU's tools and nbdkit
	@bench/disk/run

fuzz: deps-fuzz ## each fuzz target for SECONDS (600)
	@scripts/fuzz

install: all ## into DESTDIR
	meson install -C $(BUILD) --no-rebuild

# Only what was changed: tables and macros of the rest stay as somebody laid them out.
format: deps-lint ## lay out the lines changed since the last commit as .clang-format says
	git clang-format --extensions c,h

lint: deps-lint all ## clang-tidy, cppcheck, the layers
	@scripts/lint

clean: ## remove every build folder, but not build/guest
	rm -rf build-*
	[ ! -d $(BUILD) ] || find $(BUILD) -mindepth 1 -maxdepth 1 ! -name guest -exec rm -rf {} +

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: all virta run run-debian test test-long bench bench-cpu bench-disk fuzz install format lint clean help
