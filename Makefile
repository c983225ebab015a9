# A thin front: Meson and Ninja do the work.
build/build.ninja:
	meson setup build
all: build/build.ninja
	ninja -C build
