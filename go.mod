module github.com/datakeys/datakeys

go 1.26.0
