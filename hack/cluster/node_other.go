//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
)

type node struct{}

func newNode(site, builder, func(string, ...any), io.Writer) (*node, error) {
	return nil, errors.New("the local cluster needs Linux and root; use any other cluster instead: " +
		"make one, with kind for one, and name its kubeconfig in KUBECONFIG")
}

func (*node) up(context.Context) error           { return nil }
func (*node) down(context.Context) error         { return nil }
func (*node) load(context.Context, string) error { return nil }
func (*node) status(context.Context) error       { return nil }
