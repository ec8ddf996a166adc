# Makes a text file a C++ string literal: cmake -DFROM=... -DTO=... -P embed.cmake
file(READ ${FROM} text)
file(WRITE ${TO} "R\"EMBEDDED(${text})EMBEDDED\"\n")
