package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// noticeFile is what a file is called that is to be passed on, licenceFile what one is called that allows it.
var (
	noticeFile  = regexp.MustCompile(`(?i)^((un)?licen[sc]e|copying|copyright|notice|patents)`)
	licenceFile = regexp.MustCompile(`(?i)^((un)?licen[sc]e|copying)`)
)

// notice is one text, and the files that hold it.
type notice struct {
	text string
	of   []origin
}

// origin is a file of a module.
type origin struct {
	module goModule
	file   string // relative to the module
}

func (o origin) compare(other origin) int {
	return cmp.Or(strings.Compare(o.module.Path, other.module.Path), strings.Compare(o.file, other.file))
}

// gather finds the texts of Go and of the modules of all packages. This module's own is not among them.
func gather(golang goModule, packages []goPackage) ([]notice, error) {
	c := collection{texts: map[string][]origin{}, licensed: map[string]bool{}}
	if err := c.add(golang, golang.Dir); err != nil {
		return nil, err
	}
	for _, p := range packages {
		var err error
		switch m := p.Module; {
		case p.Standard || m != nil && m.Main:
		case m == nil || m.Dir == "":
			err = fmt.Errorf("package %s is of no module in the module cache: build without a vendor directory", p.ImportPath)
		case m.Replace != nil:
			err = fmt.Errorf("module %s is replaced: its source could not be had under its path and version", m.Path)
		default:
			err = c.add(*m, p.Dir)
		}
		if err != nil {
			return nil, err
		}
	}
	return c.sorted(), nil
}

// collection is what was found so far.
type collection struct {
	texts    map[string][]origin
	licensed map[string]bool // of each directory that was read: there is a licence in it
}

// add takes what lies in a directory of a module and in those above it, up to the module's.
func (c *collection) add(m goModule, dir string) error {
	licensed := false
	for at := dir; ; at = filepath.Dir(at) {
		if _, known := c.licensed[at]; !known {
			if err := c.read(m, at); err != nil {
				return err
			}
		}
		licensed = licensed || c.licensed[at]
		if at == m.Dir || len(at) < len(m.Dir) {
			break
		}
	}
	if !licensed {
		return fmt.Errorf("%s has no licence for %s: what may not be passed on may not be linked", m.Path, dir)
	}
	return nil
}

// read takes what lies in one directory.
func (c *collection) read(m goModule, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	c.licensed[dir] = false
	for _, e := range entries {
		if !e.Type().IsRegular() || !noticeFile.MatchString(e.Name()) || filepath.Ext(e.Name()) == ".go" {
			continue
		}
		path := filepath.Join(dir, e.Name())
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := filepath.Rel(m.Dir, path)
		if err != nil {
			return err
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(content), "\r\n", "\n"))
		if text == "" {
			continue
		}
		c.texts[text] = append(c.texts[text], origin{m, filepath.ToSlash(file)})
		c.licensed[dir] = c.licensed[dir] || licenceFile.MatchString(e.Name())
	}
	return nil
}

// sorted puts the texts in an order that does not change from run to run.
func (c *collection) sorted() []notice {
	var notices []notice
	for text, of := range c.texts {
		slices.SortFunc(of, origin.compare)
		notices = append(notices, notice{text, of})
	}
	slices.SortFunc(notices, func(a, b notice) int { return a.of[0].compare(b.of[0]) })
	return notices
}

const preamble = `Licences of what is linked into this program beside Datakeys' own code, whose licence is Apache-2.0.

Everything was built from Go modules as their authors published them, without a change. The source code of each is the Go
module of the path and version below, and can be had with

    go mod download -json PATH@VERSION

Where a licence asks that whoever receives the program is told where its source code is (the Mozilla Public License 2.0 does, in
section 3.2), this is it. Each text is preceded by the modules and files that it is of.
`

// writeAll writes the texts. A write to memory does not fail.
func writeAll(w io.Writer, notices []notice) {
	rule := strings.Repeat("=", 100)
	_, _ = fmt.Fprint(w, preamble)
	for _, n := range notices {
		_, _ = fmt.Fprintf(w, "\n%s\n", rule)
		for _, o := range n.of {
			_, _ = fmt.Fprintf(w, "%s %s (%s)\n", o.module.Path, o.module.Version, o.file)
		}
		_, _ = fmt.Fprintf(w, "%s\n\n%s\n", rule, n.text)
	}
}
