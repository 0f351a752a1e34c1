# SPDX-License-Identifier: Apache-2.0
"""A real SIF file: test/images/one-group-signed-pgp.sif of github.com/sylabs/sif, made by that library.

It holds two partitions for 386, one raw and one a squashfs (made by mksquashfs) with the file hello.txt, and
a PGP signature.  The file, not this module, is under the 3-clause BSD licence of that project:

Copyright (c) 2018-2023, Sylabs Inc. All rights reserved.

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice,
   this list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice,
   this list of conditions and the following disclaimer in the documentation
   and/or other materials provided with the distribution.

3. Neither the name of the copyright holder nor the names of its
   contributors may be used to endorse or promote products derived from this
   software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE
ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE
LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR
CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF
SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS
INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN
CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE)
ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE
POSSIBILITY OF SUCH DAMAGE.
"""

from __future__ import annotations

import base64
import lzma

REAL = lzma.decompress(
    base64.b64decode(
        """
/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4KQXBE9dAABuGJq7RRxCxQIomnj9YVUPkw33aX09dvVGjOiHPPHW5Ve79CrpcNBNAtB9m9KRzAnJ
bUMWNlePeXVTM+0G+wKYLJi16ondIGgehaU0ehnvYmmKttkkNEGFyN6pRwKYwx7Fja0+kWICXVdGZl/bl23n3gVYIRehCZFJzlwbw1b3al8G
x4S9HnvJ8wRscQ1zDRzASlYp+3BaKb50xq8ltSsUVxGt0AMNHDbyUNQ6KngkY6X60e7wG2JmHPwDJkNytFIMElRwP8lDG0y/im2BRMk4QiQx
NTv62ySi7qhgw0jD/4HN62yVEsqBgGtPCsBssU5y2V5hEP5vpftOdihVlLhFG6vS2TVudjdWe1QUwkPUDaRBPhgkuIfJwSAZ4VQRIdwz+SS8
Re2NP+xM/Zrgafi4L+UQ8yKQEJupUaGXVhcr/XrKI0fJWBVraGuVvdCU/NvECuaFBmE1BpmmXTRtgxq6EjRL6VTs0VftAzwL3JWKgQUxaJY3
JWEd9oJhjMOhQD0l53I6dvF/cBWgV/0sZQM/PVPHk0JUb3pSYFaSla15aMvuWwMsNTdi68HIW+PKveEE6aMwCVYcpUJgdBHUpJsWDRyT2E7r
8loZivzjP5/yVkXWVrATAN6qsnVtLPFxZQJ2wVPe6JOwFYMVT23Q33cu7duFy+pHXYEx+dleTH7nxf4KRgLaNYugg1Ka9qwQ2qW0ESWgjBY8
I1R3JkvVn5bFW6qDII128rt+8rp00FHjSGEr3McItmMxN+fWVgrWce5gOJDtxwQFPwL1fdgDF0IesMxuzL3Y0EVl9wOrpalBrVdQn6TYMNX/
9E9b6CD/wqlyb0uJT/RDbcT4JRrArBXgnpULO/51Qfu69qVo0GetIJ+xJR5UkE0suVU0MTplWLkUV3XU7DPg4kYIf3tQEVzK/F8wnEF/if/1
1WndtqYlFNzjBUEa95UEazy1eR7DpE1E+qsQH6GzZDBgChFN0UhSv1FU1QIEvJecc/s267Fc5bDLmUqc8QJtpDqeu7uP5eWVNmgJ7wMH7Zkb
vYbSZUymebOhoUpLGVDtV/l7UtGzDRX0fz2wDdqbgH7ppya16RPLilOIiMyz9W8AzTB6BqaPghi8ffVlf5PBtXGlPa097sgCXY7ypo7fd0zs
jZOtOIgPhLFo+FtxuM4Who7QZMWXPmwmGWSEViriovxSkbZvsAur9NLCaDhf6Re8l8+1otIZlFvdWdTA5wfjZ8tS9VYjClLwpgw5xRsPbCqn
mmgsfgvOGzxipIXD/fWzwHCo1AOOZdcp6mSsc6czEkEG6ZNFcQlR3xeMS6UE61VBt8FpWYdikp+6qZb2uAp58sseFMAeDhXqI3DnCgXnHZWY
wcouhUbMpzKte4HyHd3bm6qTlWscSapvfz6IC630dWfl1YQaMIsLu238renthUiBohPe+lhpQedz4Jl1HwvhjFOL1ErFMbnh2zBzwrjMoiWn
AAAtjWIQygYnnQAB6wiYyAIAbBjYWrHEZ/sCAAAAAARZWg==
"""
    )
)
