//go:build !linux

package main

import "errors"

// noDumps is for Linux, where pods run.
func noDumps() error { return errors.New("not supported on this system") }
